"""Methods that rank units by what the frozen model shows, without learning."""
