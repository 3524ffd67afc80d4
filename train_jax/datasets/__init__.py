"""Generated data sets, with renderers and classifiers that grade generated images."""
