"""Sources in tar archives: WebDataset, NeMo's tarred sets, and archives beside a table of transcripts."""
