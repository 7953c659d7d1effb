"""What people do with the library, one file for each verb. `manyviews.pretrain` is `verbs.pretrain.pretrain`."""
