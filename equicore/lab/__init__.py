"""What every experiment shares: files, parallel work, statistics, tables, figures, commands.

The core of equicore never imports it; applications, agents and benchmarks stand on it.
"""

import os

CORES = os.cpu_count() or 1
"""How many processes commands use by default."""
