"""Transactional outbox, Avro events on Kafka, consumers and background jobs."""
