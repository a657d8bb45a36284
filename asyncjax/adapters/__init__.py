"""Other packages' environments behind the protocol of `asyncjax.environment`, one file each; imported on use."""
