"""What an update finds gone: tombstones, only where the crawl saw a list to its end, and never too many at once.

A host that failed or was read in part removes nothing. Where its list of channels was read to the end, a channel that
is not on it is gone with its videos; where a channel's list of videos was read to the end as well, so is a video that
is not on it. A video that names no channel stays: no list could miss it. One that moved from a list that was read to
one that was not is taken for gone until the next update sees it there, and then gets its life and its id back.
"""

from __future__ import annotations

import sqlite3

from dailies.errors import BadInput

HOSTS_NAMED = 5
WHOLE_HOST = "SELECT host FROM staging.crawl_progress WHERE what = 'channels' AND whole = 1"
SEEN = """SELECT 1 FROM staging.channels AS staged
    WHERE staged.channel_id = ours.channel_id AND staged.instance_domain = ours.instance_domain AND staged.seen = 1"""


def find_gone(database: sqlite3.Connection) -> int:
    """Into the temporary tables ``gone_channels`` and ``gone_videos``; how many videos. From the channels to the
    videos, so that an update that saw few lists to their end looks at few videos."""
    for script in (
        """CREATE TEMP TABLE gone_channels (
            channel_id TEXT, instance_domain TEXT, PRIMARY KEY (channel_id, instance_domain)) WITHOUT ROWID""",
        "CREATE TEMP TABLE gone_videos (id INTEGER PRIMARY KEY, instance_domain TEXT)",
        f"""INSERT INTO gone_channels
            SELECT channel_id, instance_domain FROM main.channels AS ours
            WHERE removed_at IS NULL AND instance_domain IN ({WHOLE_HOST}) AND NOT EXISTS ({SEEN})""",
        f"""INSERT INTO gone_videos
            WITH decided AS (
                SELECT host AS instance_domain, channel_id FROM staging.crawl_progress
                WHERE what = 'videos' AND whole = 1 AND host IN ({WHOLE_HOST})
                UNION
                SELECT instance_domain, channel_id FROM (
                    SELECT DISTINCT instance_domain, channel_id FROM main.videos
                    WHERE instance_domain IN ({WHOLE_HOST})) AS ours
                WHERE NOT EXISTS ({SEEN}))
            SELECT videos.id, videos.instance_domain
            FROM decided CROSS JOIN main.videos USING (instance_domain, channel_id)
            WHERE videos.removed_at IS NULL AND NOT EXISTS (
                SELECT 1 FROM staging.videos AS staged
                WHERE staged.video_id = videos.video_id AND staged.instance_domain = videos.instance_domain)""",
    ):
        database.execute(script)
    return int(database.execute("SELECT count(*) FROM gone_videos").fetchone()[0])


def guard(database: sqlite3.Connection, gone: int, max_removed: float) -> None:
    """A host that lies, or a fault of ours, must not empty the catalogue."""
    living = database.execute(
        "SELECT (SELECT count(*) FROM main.videos) - (SELECT count(*) FROM main.videos WHERE removed_at IS NOT NULL)"
    ).fetchone()[0]
    if gone <= max_removed * living:
        return
    leading = database.execute(
        "SELECT instance_domain, count(*) FROM gone_videos GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?", (HOSTS_NAMED,)
    ).fetchall()
    raise BadInput(
        f"this merge would remove {gone} of {living} videos ({gone / living:.1%}), and {max_removed:.1%} is the most "
        f"allowed; most of them at {', '.join(f'{host} ({count})' for host, count in leading)}: "
        "look there, then allow more or leave those hosts out"
    )


def bury(database: sqlite3.Connection, as_of: int) -> dict[str, int]:
    """Tombstones for what was found gone. The rows stay, for the id of a video is never another's; the vectors go."""
    database.execute(
        """INSERT INTO main.changed_embeddings
           SELECT id, 'removed' FROM gone_videos CROSS JOIN main.video_embeddings USING (id) ORDER BY id"""
    )
    vectors = database.execute("DELETE FROM main.video_embeddings WHERE id IN (SELECT id FROM gone_videos)").rowcount
    videos = database.execute(
        "UPDATE main.videos SET removed_at = ? WHERE id IN (SELECT id FROM gone_videos)", (as_of,)
    ).rowcount
    channels = database.execute(
        """UPDATE main.channels SET removed_at = ?
           WHERE (channel_id, instance_domain) IN (SELECT channel_id, instance_domain FROM gone_channels)""",
        (as_of,),
    ).rowcount
    return {"video_embeddings": vectors, "videos": videos, "channels": channels}
