"""What a partition costs: rates and cost per byte, learned from usage reports and log ends. Pure."""
