"""What koe's two HTML reports share: frame, style, script, charts; it knows neither of them."""
