"""What several views draw: HTML with everything escaped, and line charts."""
