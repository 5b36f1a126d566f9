-- What one job was enqueued with in place of what its handler declares; NULL: nothing. Its row's header is what counts.
ALTER TABLE pipeline.job ADD COLUMN terms jsonb;
