"""The one source of truth: jobs, units, calls, leases, generations, dispatch and events.

``interface`` is the contract, ``sqlite`` the store behind it that needs no server.
"""
