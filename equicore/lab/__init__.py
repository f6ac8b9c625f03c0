"""What every experiment shares: files, parallel work, statistics, tables, figures, commands.

The core of equicore never imports it; applications, agents and benchmarks stand on it.
"""
