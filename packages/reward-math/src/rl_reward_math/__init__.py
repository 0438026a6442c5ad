"""Mathematical answers checked by math-verify in killable processes."""
