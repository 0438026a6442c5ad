"""A Ray on this machine that later runs join."""
