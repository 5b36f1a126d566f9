"""Job types that work: declared on an application by one call each."""
