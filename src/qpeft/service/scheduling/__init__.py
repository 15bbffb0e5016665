"""What a submission asks for, what it will cost, and who is served next. No database, no HTTP."""
