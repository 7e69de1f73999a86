"""From records to what is shown: pure functions, one module a subject. Prints nothing."""
