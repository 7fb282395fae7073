"""One file for each scenario: a flow that breaks something on purpose and proves that nothing was lost."""
