"""What a person reads: tables in the terminal, figures, pages."""
