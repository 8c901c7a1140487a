"""Where other systems start this package: each module is one of their entry points, and needs the extra that installs them."""
