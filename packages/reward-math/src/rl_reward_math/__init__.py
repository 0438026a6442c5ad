"""Mathematical answers judged by math-verify in killable processes."""
