"""Parts that know nothing of models or data sets."""
