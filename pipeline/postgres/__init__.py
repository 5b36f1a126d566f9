"""PostgreSQL: migrations, the writers of the outbox, and the reader of its slot."""
