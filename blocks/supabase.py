"""The Supabase project that a site keeps its ledger in, in place of a SQLite file."""

from __future__ import annotations

from pydantic import Field, SecretStr

from blocks._part import Part
from dailies.ledger.interface import Ledger


class SupabaseLedger(Part):
    """Jobs, units and leases in a Supabase project, for workers on any number of machines."""

    _block_type_name = "Dailies Supabase ledger"
    _block_type_slug = "dailies-supabase-ledger"

    url: str = Field(
        description="The project's address: https://PROJECT.supabase.co. Its API must expose the schema 'dailies'."
    )
    service_key: SecretStr = Field(
        description="A secret key of the project (sb_secret_…, or the older service_role key). It may do everything: "
        "give it to workers alone."
    )
    patience: float = Field(
        default=10.0, gt=0, description="For how many seconds a call is tried again while the project does not answer."
    )

    def open(self) -> Ledger:
        """Asks nothing of the project yet; ``SupabaseLedger.check`` does."""
        # Half a second to import, which a site on SQLite need not pay.
        from dailies.ledger.supabase import SupabaseLedger as RemoteLedger

        return RemoteLedger(self.url, self.service_key.get_secret_value(), patience=self.patience)
