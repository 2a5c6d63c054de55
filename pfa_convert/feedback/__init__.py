"""The feedback primitive: linear maps whose error travels through a weight of its own."""
