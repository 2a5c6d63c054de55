"""An account of what a model does with its Parameters, by what PyTorch's dispatcher sees in a run."""
