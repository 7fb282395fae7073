"""What every ledger must keep, written against ``dailies.ledger.interface`` alone.

A store joins by a test module with three fixtures, and a subclass of each contract here named ``Test...``:

    clock    a ``Clock`` that the ledger was given; nobody else's time counts
    ledger   a ``Ledger`` with nothing in it
    another  opens one more ledger object on the same database, as another process would
"""
