"""Finding the sites of a model, rewriting them, and reporting what was done."""
