"""What is measured, by the field's definitions. Nothing here runs anything or knows an engine."""
