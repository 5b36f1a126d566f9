"""Kafka: producer, consumer and topics, with confluent-kafka."""
