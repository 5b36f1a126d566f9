"""Kafka Connect and its files."""
