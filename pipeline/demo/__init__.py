"""The demonstration: a small shop, and the run that places orders, breaks things and shows that nothing is lost."""
