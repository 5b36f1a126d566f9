"""Settings and declarations in, running stages out: the only place that builds adapters and wires them."""
