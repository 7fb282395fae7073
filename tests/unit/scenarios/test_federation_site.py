"""One fake host without a server: PeerTube's shapes, every bad habit, and the truth beside them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest

from dailies.catalog import documents as crawler
from dailies.errors import BadInput
from dailies.scenarios.federation import Federation
from dailies.scenarios.federation_content import Scale, channels, videos
from dailies.scenarios.federation_documents import BREAKAGES
from dailies.scenarios.federation_plan import EVERYTHING, Behaviour, Setup
from dailies.scenarios.federation_site import Site
from dailies.scenarios.federation_truth import HostTruth, truth

pytestmark = pytest.mark.unit
SCALE = Scale(seed=7, hosts=3, videos=600)
NAMES = ["127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003"]
API = "/api/v1"


def site_of(behaviour: Behaviour | None = None, scale: Scale = SCALE, day: int = 0) -> Site:
    return Site(setup_of(behaviour, scale, day), NAMES[: scale.hosts], 0, day)


def setup_of(behaviour: Behaviour | None = None, scale: Scale = SCALE, day: int = 0) -> Setup:
    return Setup(scale, {0: behaviour} if behaviour else {}, day)


def truth_of(behaviour: Behaviour | None = None, scale: Scale = SCALE, day: int = 0) -> HostTruth:
    return truth(setup_of(behaviour, scale, day), NAMES[: scale.hosts]).hosts[NAMES[0]]


def asked(site: Site, target: str) -> dict:
    reply = site.reply(API + target)
    assert reply.status == 200, reply
    return json.loads(reply.body)


def page(site: Site, channel: int = 1, start: int = 0, count: int = 100, more: str = "") -> dict:
    name = channels(SCALE, 0)[channel - 1].name
    return asked(site, f"/video-channels/{name}/videos?start={start}&count={count}&sort=-publishedAt{more}")


def read_naively(site: Site, channel: int, count: int = 20) -> list[str]:
    """Page after page by numbers alone: what most crawlers do."""
    found: list[str] = []
    for start in range(0, 1000, count):
        items = page(site, channel, start, count)["data"]
        if not items:
            break
        found += [item["uuid"] for item in items]
    return found


def read_carefully(site: Site, channel: int, count: int = 20) -> list[str]:
    """Each page begins inside the last one, and is joined on by what both hold."""
    found: list[str] = []
    start = 0
    for _ in range(200):
        items = [item["uuid"] for item in page(site, channel, start, count)["data"]]
        known = [place for place, uuid in enumerate(items) if uuid in found]
        assert known or not found, "something was lost in between"
        new = [uuid for uuid in items[(known[-1] + 1 if known else 0) :] if uuid not in found]
        if not new:
            return found
        found += new
        start += len(items) - 5 - (len(known) - 5 if start else 0)
    raise AssertionError("the list does not end")


def rows_of(site: Site, behaviour: Behaviour | None = None) -> tuple[list[dict], Counter[str]]:
    """Every video, as the crawler's own code makes rows of documents; and what became of the others."""
    rows: list[dict] = []
    others: Counter[str] = Counter()
    for channel in truth_of(behaviour).channels:
        if channel["channel_name"] in truth_of(behaviour).unread:
            continue
        items = [
            item for start in range(0, 500, 30) for item in page(site, int(channel["channel_id"]), start, 30)["data"]
        ]
        for item in items:
            try:
                rows.append(crawler.video(NAMES[0], f"http://{NAMES[0]}", channel, item, 1))
            except crawler.Refused:
                others["refused"] += 1
            except crawler.Remote:
                others["remote"] += 1
    return rows, others


def by_id(rows: object) -> dict[str, dict]:
    return {row["video_id"]: {k: v for k, v in row.items() if k != "last_checked_at"} for row in rows}  # type: ignore[attr-defined]


# ── shapes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_host_says_what_it_is():
    said = asked(site_of(), "/config")
    assert crawler.instance(NAMES[0], said) == truth_of().instance
    assert said["serverVersion"] == "7.2.1"


def test_channels_are_listed_and_counted():
    site = site_of()
    said = asked(site, "/video-channels?start=0&count=100&sort=createdAt")
    rows = [crawler.channel(NAMES[0], f"http://{NAMES[0]}", each) for each in said["data"]]
    assert said["total"] == 4
    assert sorted(rows, key=lambda row: row["channel_id"]) == list(truth_of().channels)
    assert [each["createdAt"] for each in said["data"]] == sorted(each["createdAt"] for each in said["data"])
    assert len(asked(site, "/video-channels?start=1&count=2")["data"]) == 2


def test_what_the_crawler_makes_of_a_healthy_host_is_the_truth_to_the_last_column():
    rows, others = rows_of(site_of())
    assert by_id(rows) == by_id(truth_of().videos)
    assert len(rows) == 200
    assert others == {}


def test_videos_come_in_pages_newest_first_and_the_empty_page_ends_them():
    site = site_of()
    first, second, last = page(site, count=30), page(site, start=30, count=30), page(site, start=100)
    assert first["total"] == second["total"] == last["total"] == 100
    assert last["data"] == []
    moments = [each["publishedAt"] for each in first["data"] + second["data"]]
    assert moments == sorted(moments, reverse=True)
    assert len(set(moments)) == 60
    assert len(asked(site, f"/video-channels/{channels(SCALE, 0)[0].name}/videos")["data"]) == 15


def test_lists_can_be_had_in_other_orders():
    name = channels(SCALE, 0)[0].name
    views = [each["views"] for each in asked(site_of(), f"/video-channels/{name}/videos?sort=-views&count=100")["data"]]
    assert views == sorted(views, reverse=True)
    assert len(views) == 100


def test_all_videos_are_its_own_only_where_that_is_asked_for():
    site = site_of()
    local = asked(site, "/videos?count=100&isLocal=true")
    both = asked(site, "/videos?count=100")
    assert local["total"] == 200
    assert {each["channel"]["host"] for each in local["data"]} == {NAMES[0]}
    assert both["total"] == 300
    assert {each["channel"]["host"]: each["isLocal"] for each in both["data"]} == {NAMES[0]: True, NAMES[1]: False}
    uuid = local["data"][3]["uuid"]
    assert asked(site, f"/videos/{uuid}") == local["data"][3]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"/video-channels/{channels(SCALE, 0)[0].name}/videos?count=101", 400),
        ("/video-channels?count=-1", 400),
        ("/video-channels?start=x", 400),
        ("/video-channels?sort=trending", 400),
        ("/video-channels/nobody/videos", 404),
        ("/videos/nothing", 404),
        ("/nowhere", 404),
    ],
)
def test_errors_are_problems_as_rfc_7807_has_them(target, status):
    reply = site_of().reply(API + target)
    said = json.loads(reply.body)
    assert (reply.status, said["status"], reply.kind) == (status, status, "application/problem+json")
    assert said["title"]
    assert said["detail"]


# ── bad habits ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_reads_a_shifting_list_by_numbers_loses_videos_and_who_joins_pages_does_not():
    how = Behaviour("shifting")
    scale_truth = truth_of(how)
    today = [each.uuid for each in videos(SCALE, 0, 1, 0)]
    certain = set(today) - scale_truth.optional
    naive = read_naively(site_of(how), 1)
    assert certain - set(naive), "the list shifts too little to be of use"
    careful = read_carefully(site_of(how), 1)
    assert certain <= set(careful) <= set(today) | scale_truth.optional
    assert len(careful) == len(set(careful))
    assert careful == today


def test_a_shifting_list_becomes_tomorrows_as_it_is_read_and_not_as_it_is_read_again():
    scale = Scale(seed=7, hosts=3, videos=600, births=0.05, deaths=0.03)
    site = site_of(Behaviour("shifting"), scale)
    first = page(site, count=10)
    again = page(site, count=10)
    assert again == page(site, count=10)
    assert first != again
    for start in range(10, 120, 5):
        page(site, start=start, count=10)
    shown = {each["uuid"] for start in (0, 100) for each in page(site, start=start)["data"]}
    today, tomorrow = ({each.uuid for each in videos(scale, 0, 1, day)} for day in (0, 1))
    assert shown - today == tomorrow - today  # all that is new has come
    assert today - shown
    assert today - shown <= today - tomorrow
    known = truth_of(Behaviour("shifting"), scale)
    early = {uuid: row for uuid, row in by_id(known.early).items() if row["channel_id"] == "1"}
    assert early.keys() == tomorrow - today
    assert shown <= known.allowed
    site.show(0)
    assert page(site, count=10) == first


def test_every_second_page_only_shifts_where_that_is_asked_for():
    site = site_of(Behaviour("shifting", every=2))
    before = page(site, count=10)
    assert page(site, count=10) == before
    page(site, start=10, count=10)
    assert page(site, count=10) != before


def test_a_malformed_host_costs_its_broken_documents_and_its_last_channel():
    how = Behaviour("malformed", every=3)
    known = truth_of(how)
    rows, others = rows_of(site_of(how), how)
    assert by_id(rows) == by_id(known.videos)
    assert others == {"refused": len(known.refused)}
    assert len(known.refused) > 40
    assert set(known.refused.values()) == set(BREAKAGES)
    assert known.unread == {channels(SCALE, 0)[3].name}
    listed = asked(site_of(how), "/video-channels?count=100")["data"]
    assert len(listed) == 4 + known.refused_channels
    with pytest.raises(crawler.Refused):
        crawler.channel(NAMES[0], f"http://{NAMES[0]}", listed[1])


def test_pages_that_are_none_come_in_every_way():
    site = site_of(Behaviour("malformed"))
    name = channels(SCALE, 0)[3].name
    replies = [site.reply(f"{API}/video-channels/{name}/videos") for _ in range(6)]
    assert len({reply.body for reply in replies}) == 6
    assert replies[0].kind == "text/html"
    for reply in replies:
        try:
            crawler.page(json.loads(reply.body))
        except (crawler.Refused, ValueError):
            continue
        pytest.fail(f"a page after all: {reply.body!r}")


def test_a_liar_shows_strangers_doubles_and_short_pages():
    how = Behaviour("lying")
    known = truth_of(how)
    assert len(page(site_of(how), count=100)["data"]) == 30
    assert page(site_of(how))["total"] > 1000
    rows, others = rows_of(site_of(how), how)
    assert by_id(rows) == by_id(known.videos)
    assert len(rows) > len(known.videos), "nothing was there twice"
    assert others["remote"] > 10
    shown = [item for start in range(0, 150, 30) for item in page(site_of(how), start=start)["data"]]
    strangers = [each for each in shown if each["channel"]["host"] != NAMES[0]]
    assert {each["uuid"] for each in strangers} <= known.strangers
    assert {each["isLocal"] for each in strangers} == {True, False}
    foreign = [each for each in asked(site_of(how), "/video-channels")["data"] if each["host"] != NAMES[0]]
    assert foreign


def test_lies_can_be_chosen():
    honest = page(site_of())
    low = page(site_of(Behaviour("lying", lies=("low_total",))))
    assert low["data"] == honest["data"]
    assert low["total"] == 50


def statuses(site: Site, times: int) -> list[int]:
    return [site.reply(f"{API}/config").status for _ in range(times)]


def test_failing_hosts_recover_or_not_as_planned():
    assert statuses(site_of(Behaviour("failing", first=2)), 4) == [500, 500, 200, 200]
    assert statuses(site_of(Behaviour("failing", first=-1)), 4) == [500] * 4
    assert statuses(site_of(Behaviour("failing", first=-1, after=3)), 5) == [200, 200, 200, 500, 500]
    assert truth_of(Behaviour("failing", first=2)).whole
    assert not truth_of(Behaviour("failing", first=-1)).healthy
    half_read = truth_of(Behaviour("failing", first=-1, after=3))
    assert half_read.healthy
    assert not half_read.whole
    assert len(half_read.optional) == 200


def test_every_nth_request_is_one_too_many():
    site = site_of(Behaviour("rate_limiting", every=3, retry_after=2))
    assert statuses(site, 6) == [200, 200, 429, 200, 200, 429]
    site.reply(f"{API}/config")
    site.reply(f"{API}/config")
    assert ("Retry-After", "2") in site.reply(f"{API}/config").headers


def test_a_redirecting_host_sends_everybody_elsewhere():
    reply = site_of(Behaviour("redirecting")).reply(f"{API}/config")
    assert (reply.status, dict(reply.headers)) == (302, {"Location": f"http://{NAMES[1]}{API}/config"})
    elsewhere = site_of(Behaviour("redirecting", to="http://127.0.0.1:1")).reply(f"{API}/config")
    assert dict(elsewhere.headers) == {"Location": f"http://127.0.0.1:1{API}/config"}


def test_endless_lists_do_not_end():
    how = Behaviour("endless")
    deep, deeper = page(site_of(how), start=95, count=50), page(site_of(how), start=10_000)
    assert [each["uuid"] for each in deep["data"][:5]] == [each.uuid for each in videos(SCALE, 0, 1, 0)[95:]]
    assert len({each["uuid"] for each in deep["data"] + deeper["data"]}) == 150
    assert deeper["total"] > 10_100
    assert deep["data"] == page(site_of(how), start=95, count=50)["data"]
    moments = [each["publishedAt"] for each in deep["data"]]
    assert moments == sorted(moments, reverse=True)
    assert len(page(site_of(how), channel=2, start=50)["data"]) == 0
    again = site_of(Behaviour("endless", repeats=True))
    assert page(again, start=500)["data"] == page(again)["data"] != []


def test_the_truth_tells_what_was_lost_and_what_was_made_up():
    known = truth(Setup(SCALE, {0: Behaviour("shifting"), 1: Behaviour("dead")}), NAMES)
    found = {(str(row["video_id"]), str(row["instance_domain"])) for row in known.videos}
    assert {host for _, host in found} == {NAMES[0], NAMES[2]}
    assert known.missing(found) == known.surplus(found) == set()
    lost = next(each for each in found if each[1] == NAMES[2])
    assert known.missing(found - {lost}) == {lost}
    shaky = next(each for each in found if each[0] in known.hosts[NAMES[0]].optional)
    assert known.missing(found - {shaky}) == set()
    assert known.surplus({("made up", NAMES[2]), (lost[0], NAMES[1])}) == {("made up", NAMES[2]), (lost[0], NAMES[1])}
    topics = {each.uuid: each.topic for number in range(1, 5) for each in videos(SCALE, 2, number, 0)}
    assert known.topics[lost[0]] == topics[lost[0]]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Behaviour("sulking"),  # type: ignore[arg-type]
        lambda: Behaviour("lying", lies=("everything",)),  # type: ignore[arg-type]
        lambda: Behaviour("slow", delay_s=-1),
        lambda: Setup(SCALE, {3: Behaviour("dead")}),
        lambda: Setup(SCALE, day=-1),
        lambda: Setup(SCALE, ports=(1, 2)),
        lambda: Scale(hosts=0),
        lambda: Scale(births=2),
        lambda: Federation(hosts=2).counters(),
    ],
)
def test_what_cannot_be_is_refused_with_one_line(wrong: Callable[[], object]):
    with pytest.raises(BadInput) as refused:
        wrong()
    assert "\n" not in str(refused.value)


def test_a_setup_survives_its_way_to_the_server():
    setup = Setup(Scale(hosts=20), EVERYTHING, 3, 0.1, "somewhere.log", tuple(range(21)))
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup
