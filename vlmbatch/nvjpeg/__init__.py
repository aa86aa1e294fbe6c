"""JPEGs decoded and resized on a device, in the process that ``images/loading`` starts for it."""
