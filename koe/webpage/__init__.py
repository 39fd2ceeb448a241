"""What koe's two HTML reports share: frame, style, script and charts."""
