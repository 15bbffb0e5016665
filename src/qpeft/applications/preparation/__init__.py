"""From a data set to a folder of rows: checks, splits, card, reasons by regression."""
