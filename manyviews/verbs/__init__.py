"""The verbs of the library, one file for each. `manyviews.pretrain` is `verbs.pretrain.pretrain`."""
