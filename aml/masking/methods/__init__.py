"""The masking methods of this project, found by name through aml.masking.config.find_method."""
