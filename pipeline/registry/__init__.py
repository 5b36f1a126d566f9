"""The schema registry, by Confluent's HTTP API."""
