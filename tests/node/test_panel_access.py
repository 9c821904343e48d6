"""Who gets in at the panel, as what, for how long, and what each role may do."""

import json
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from qcnode.errors import PanelUnavailableError, SignInError
from qcnode.panel import accounts as accounts_module
from qcnode.panel.access import GRANTS, Right, Role, least_role, rules, table
from qcnode.panel.accounts import IDLE, LOCK_MAX, SESSION_MAX, WRONG_MAX, Accounts
from qcnode.panel.audit import AuditTrail, Deed
from qcnode.panel.file import PanelFile
from qcnode.panel.guard import COOKIE
from tests.conftest import ROOT
from tests.node.panel_fakes import FakeNode, served

ORIGIN = {"origin": "http://127.0.0.1"}
TOKEN = "a token that is long enough"
PIN = "482913"
PASSWORD = "correct horse battery"
DOUBTFUL = 5.0
WAIT_S = 20
BY = Deed(what="account.add", who="root", role="admin", where="test")


@pytest.fixture
def node():
    return FakeNode()


@pytest.fixture
def client(node):
    return at_door(node)


@pytest.fixture
def accounts(node):
    """The accounts of a panel nobody opens."""
    node.panel()
    return node.accounts


def at_door(node, **settings):
    """Open the panel as somebody nobody knows."""
    return TestClient(node.panel(**settings), base_url="http://127.0.0.1", follow_redirects=False)


def sign_in(client, name="Ana", secret=PIN, to="/review"):
    said = {"name": name, "secret": secret, "to": to}
    return client.post("/login", data=said, headers=ORIGIN)


def make_admin(node, client):
    said = {"token": node.accounts.first_token, "name": "root", "secret": PASSWORD}
    return client.post("/setup", data=said, headers=ORIGIN)


def wrong_of(answer):
    assert answer.status_code == 403
    return answer.text.split('role="alert">')[1].split("<")[0]


# -- the first start -----------------------------------------------------------


def test_there_is_no_default_password_and_one_token_makes_the_first_administrator(node, client):
    assert "First start" in client.get("/login").text
    said = {"token": "a guess", "name": "root", "secret": PASSWORD}
    assert "not the token" in wrong_of(client.post("/setup", data=said, headers=ORIGIN))

    answer = make_admin(node, client)

    assert (answer.status_code, answer.headers["location"]) == (303, "/station")
    assert client.get("/api/v1/accounts").json()[0]["role"] == "admin"
    again = {"token": "", "name": "second", "secret": PASSWORD}
    assert "administrator already" in wrong_of(client.post("/setup", data=again, headers=ORIGIN))


def test_a_token_that_was_given_makes_the_first_administrator_and_nothing_later(node):
    client = at_door(node, token=TOKEN)
    assert node.accounts.first_token == TOKEN
    make_admin(node, client)
    assert node.accounts.first_token is None
    assert Accounts(node.file, now=node.now, new_secret=str, given=TOKEN).first_token is None


def test_a_program_that_shows_the_given_token_reads_metrics_and_nothing_more(node):
    client = at_door(node, token=TOKEN)
    shown = {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/metrics").status_code == 403
    assert client.get("/readyz").json() == {"ready": True}
    assert client.get("/metrics", headers=shown).status_code == 200
    assert "components" in client.get("/readyz", headers=shown).json()
    assert client.get("/api/v1/spend", headers=shown).status_code == 403
    assert client.get("/metrics", headers={"authorization": "Bearer no"}).status_code == 401


# -- signing in ----------------------------------------------------------------


def test_name_and_pin_let_in_and_the_cookie_holds_neither(node, client):
    node.accounts.add("Ana", Role.OPERATOR, PIN, by=BY)
    assert client.get("/review").headers["location"] == "/login?to=/review"

    answer = sign_in(client)

    cookie = answer.headers["set-cookie"]
    assert (answer.status_code, answer.headers["location"]) == (303, "/review")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert PIN not in cookie
    assert client.get("/review").status_code == 200
    with node.file.transaction() as db:
        kept = "\n".join(db.iterdump())
    assert client.cookies[COOKIE] not in kept
    assert PIN not in kept
    assert "$argon2id$" in kept


@pytest.mark.parametrize("name", ["Ana", "nobody"])
def test_a_wrong_secret_says_the_same_whoever_there_is(node, client, name):
    node.accounts.add("Ana", Role.OPERATOR, PIN, by=BY)
    refused = sign_in(client, name, "000001")
    assert wrong_of(refused) == "name and secret do not belong together"
    assert "set-cookie" not in refused.headers


@pytest.mark.parametrize(
    ("role", "secret", "words"),
    [
        (Role.OPERATOR, "12345", "6 digits"),
        (Role.OPERATOR, "111111", "not all the same"),
        (Role.SUPERVISOR, "482913", "password of at least 10"),
        (Role.ADMIN, "short", "password of at least 10"),
        (Role.OPERATOR, "x" * 201, "at most 200"),
    ],
)
def test_a_secret_that_can_be_guessed_is_not_taken(accounts, role, secret, words):
    with pytest.raises(SignInError, match=words):
        accounts.add("Ana", role, secret, by=BY)


@pytest.mark.parametrize("name", ["", " ", "a" * 41, "<script>", "a\nb", "../x"])
def test_a_name_that_is_none_is_not_taken(accounts, name):
    with pytest.raises(SignInError, match="a name is"):
        accounts.add(name, Role.OPERATOR, PIN, by=BY)


def test_wrong_secrets_lock_for_longer_each_time_and_a_restart_does_not_shorten_it(tmp_path):
    node = FakeNode()
    node.file = PanelFile(tmp_path / "panel.db")
    client = at_door(node)
    node.accounts.add("Ana", Role.OPERATOR, PIN, by=BY)
    for _ in range(WRONG_MAX):
        assert "do not belong" in wrong_of(sign_in(client, secret="000000"))
    assert "locked for another 61 s" in wrong_of(sign_in(client))

    node.file.close()
    node.file = PanelFile(tmp_path / "panel.db")
    client = at_door(node)
    assert "locked" in wrong_of(sign_in(client))
    node.at += timedelta(seconds=61)
    assert "do not belong" in wrong_of(sign_in(client, secret="000000"))
    assert "locked for another 121 s" in wrong_of(sign_in(client))
    for _ in range(6):
        node.at += LOCK_MAX
        assert "do not belong" in wrong_of(sign_in(client, secret="000000"))
    assert "locked for another 901 s" in wrong_of(sign_in(client))
    node.at += LOCK_MAX
    assert sign_in(client).status_code == 303
    node.file.close()


def test_the_file_is_the_nodes_own_and_one_that_is_none_is_named(tmp_path):
    path = tmp_path / "panel.db"
    PanelFile(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(
        PanelUnavailableError, match=r"panel\.db: the panel's file cannot be opened"
    ):
        PanelFile(path)


def test_a_crowd_at_the_door_is_sent_away_and_the_line_stays_short(node, client, monkeypatch):
    monkeypatch.setattr("qcnode.panel.signin.WAITING_MAX", 0)
    node.accounts.add("Ana", Role.OPERATOR, PIN, by=BY)
    assert "too many" in wrong_of(sign_in(client))


def test_signing_in_leads_nowhere_but_to_a_page_of_the_panel(node, client):
    node.accounts.add("Ana", Role.OPERATOR, PIN, by=BY)
    for to in ("//evil.example", "https://evil.example/", "/enter?key=x", "review"):
        assert sign_in(client, to=to).headers["location"] == "/"


@pytest.mark.parametrize("headers", [{}, {"origin": "http://evil.example"}])
@pytest.mark.parametrize("path", ["/login", "/setup", "/logout", "/station"])
def test_a_form_from_another_page_is_refused(client, path, headers):
    assert client.post(path, data={"name": "x"}, headers=headers).status_code == 403


@pytest.mark.parametrize("body", [b"", b"\xff\xfe=\xff", b"&" * 900, b"a=1&" * 50])
def test_a_form_that_is_none_is_refused_in_a_sentence(node, client, body):
    make_admin(node, client)
    headers = ORIGIN | {"content-type": "application/x-www-form-urlencoded"}
    assert "do not belong" in wrong_of(client.post("/login", content=body, headers=headers))


# -- sessions ------------------------------------------------------------------


def test_a_cookie_that_was_copied_opens_nothing_after_signing_out(node, client):
    node.accounts.add("Ana", Role.OPERATOR, PIN, by=BY)
    sign_in(client)
    stolen = client.cookies[COOKIE]
    assert client.post("/logout", headers=ORIGIN).status_code == 303
    answer = client.get("/api/v1/escalations", headers={"cookie": f"{COOKIE}={stolen}"})
    assert (answer.status_code, answer.json()["detail"]) == (403, "needs operator")


@pytest.mark.parametrize("value", ["", "0" * 64, "x", '"'])
def test_a_forged_cookie_opens_nothing(client, value):
    answer = client.get("/api/v1/escalations", headers={"cookie": f"{COOKIE}={value}"})
    assert answer.status_code == 403


def test_nobody_stays_signed_in_longer_than_they_are_there(node, accounts):
    cookie = node.session()
    node.at += IDLE - timedelta(seconds=1)
    assert accounts.who(cookie).name == "the operator"
    assert accounts.touch(accounts.who(cookie).key)
    node.at += IDLE - timedelta(seconds=1)
    assert accounts.who(cookie) is not None
    node.at += timedelta(seconds=1)
    assert accounts.who(cookie) is None


def test_nobody_stays_signed_in_longer_than_a_shift(node, accounts):
    cookie = node.session()
    key = accounts.who(cookie).key
    for _ in range(int(SESSION_MAX / IDLE * 2)):
        accounts.touch(key)
        node.at += IDLE / 2
    assert accounts.who(cookie) is None


def test_a_session_survives_a_restart_of_the_node(node, accounts):
    cookie = node.session()
    node.at += IDLE / 2
    key = accounts.who(cookie).key
    assert accounts.touch(key)
    accounts.keep_seen(key)
    node.at += IDLE / 2
    again = Accounts(node.file, now=node.now, new_secret=str, given=None)
    assert again.who(cookie).role is Role.OPERATOR


def test_there_are_never_more_sessions_than_a_bound(node, accounts, monkeypatch):
    monkeypatch.setattr(accounts_module, "SESSIONS_MAX", 3)
    cookies = []
    for _ in range(5):
        node.at += timedelta(seconds=1)
        cookies.append(node.session())
    assert [accounts.who(cookie) is not None for cookie in cookies] == [0, 0, 1, 1, 1]


def test_another_role_or_secret_ends_every_session_of_that_person(node, client):
    node.accounts.add("Ana", Role.OPERATOR, PIN, by=BY)
    sign_in(client)
    node.accounts.change("Ana", secret="739164", by=BY)
    assert client.get("/api/v1/escalations").status_code == 403
    assert sign_in(client, secret="739164").status_code == 303
    node.accounts.remove("Ana", by=BY)
    assert client.get("/api/v1/escalations").status_code == 403


def test_the_last_administrator_can_neither_be_removed_nor_made_less(node, client):
    make_admin(node, client)
    for do in (
        lambda: client.delete("/api/v1/accounts/root", headers=JSON),
        lambda: client.post("/api/v1/accounts/root", json={"role": "auditor"}, headers=ORIGIN),
    ):
        answer = do()
        assert (answer.status_code, "last administrator" in answer.json()["detail"]) == (422, True)


JSON = ORIGIN | {"content-type": "application/json"}


def test_an_idle_tab_becomes_a_viewers_and_goes_on_showing_the_line(node, free_port):
    with served(node.panel(), free_port()) as url:
        node.pass_part(DOUBTFUL)
        cookie = {"cookie": f"{COOKIE}={node.session()}"}
        with connect(
            url.replace("http", "ws") + "/ws", origin=url, additional_headers=cookie
        ) as socket:
            assert until(socket, "who")["role"] == "operator"
            node.at += IDLE
            node.pass_part(DOUBTFUL)
            told = {"who": {}}
            while told.get("who", {}).get("role") != "viewer":
                told = json.loads(socket.recv(timeout=WAIT_S))["sections"]
            assert told["waiting"] is None
            assert told["queue"]["total"] == 2
            assert told["counters"]["parts"] == "2"


def until(socket, name):
    while True:
        sections = json.loads(socket.recv(timeout=WAIT_S))["sections"]
        if name in sections:
            return sections[name]


@pytest.mark.parametrize("origin", [None, "http://evil.example", "null"])
def test_the_live_stream_is_refused_to_other_pages(node, free_port, origin):
    with (
        served(node.panel(), free_port()) as url,
        pytest.raises(InvalidStatus, match="403"),
        connect(url.replace("http", "ws") + "/ws", origin=origin),
    ):
        pass


# -- roles and rights ----------------------------------------------------------

FILLED = {"name": "x", "key": "camera", "escalation_id": "e-none", "span": "day"}


def test_every_route_asks_for_exactly_one_right(node):
    every = rules(node.panel())
    assert [rule for rule in every if rule.right is None] == []
    assert len(every) > 40


@pytest.mark.parametrize("role", Role)
def test_each_role_may_do_what_the_table_says_and_is_told_what_is_missing(node, role):
    client = at_door(node, token=TOKEN)
    for rule in rules(client.app):
        method, right = rule.method, rule.right
        client.cookies.clear()
        if role is not Role.VIEWER:
            client.cookies.set(COOKIE, node.session(role))
        path = rule.path.format(**FILLED)
        headers = JSON | {"idempotency-key": "0" * 16}
        body = None if method == "GET" else b"{}"
        answer = client.request(method, path, headers=headers, content=body)
        what = (role, method, path, answer.status_code)
        if right in GRANTS[role]:
            assert answer.status_code != 403 or path in ("/login", "/setup", "/enter"), what
        elif path in PAGE_PATHS and role is Role.VIEWER:
            assert answer.headers["location"] == f"/login?to={path}", what
        else:
            assert answer.status_code == 403, what
            assert f"needs {least_role(right)}" in answer.text


PAGE_PATHS = ("/review", "/models", "/spend", "/audit")


def test_the_table_in_the_docs_is_the_one_that_holds(node):
    assert (ROOT / "docs" / "panel" / "roles.md").read_text() == table(node.panel())


def test_an_auditor_reads_everything_and_changes_nothing():
    changing = set(Right) - {
        *(Right.VIEW, Right.HELP, Right.SPEND, Right.MODELS, Right.METRICS, Right.AUDIT)
    }
    assert GRANTS[Role.AUDITOR] & changing == set()
    assert set(Right) - changing - GRANTS[Role.AUDITOR] == set()


def test_what_a_role_may_not_see_is_not_sent_to_it(node, client):
    node.pass_part(DOUBTFUL)
    state = client.get("/api/v1/state").json()
    assert (state["waiting"], state["money"], state["bars"]) == (None, None, None)
    assert state["queue"]["total"] == 1
    client.cookies.set(COOKIE, node.session(Role.OPERATOR))
    state = client.get("/api/v1/state").json()
    assert (state["money"], state["waiting"]["total"]) == (None, 1)
    assert "used" not in state["bars"]["shown"][0]
    client.cookies.set(COOKIE, node.session(Role.AUDITOR))
    state = client.get("/api/v1/state").json()
    assert (state["waiting"], state["money"]["known"]) == (None, True)


# -- programs ------------------------------------------------------------------


def test_a_token_lets_a_program_do_what_it_is_for_and_is_shown_once(node, client):
    make_admin(node, client)
    said = {"name": "mes", "rights": ["view", "review"]}
    secret = client.post("/api/v1/tokens", json=said, headers=ORIGIN).json()["secret"]
    client.cookies.clear()
    shown = {"authorization": f"Bearer {secret}"}

    assert client.get("/api/v1/escalations", headers=shown).json()["total"] == 0
    assert client.get("/api/v1/spend", headers=shown).status_code == 403
    with node.file.transaction() as db:
        assert secret not in "\n".join(db.iterdump())
    node.accounts.revoke("mes", by=BY)
    assert client.get("/api/v1/escalations", headers=shown).status_code == 401


def test_a_program_needs_no_page_and_a_cookie_does_not_count_beside_its_token(node, client):
    secret = node.accounts.issue("andon", [Right.HELP], by=BY)
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    client.cookies.set(COOKIE, node.session(Role.ADMIN))
    assert client.post("/api/v1/help", headers=headers, content=b"{}").status_code == 204
    assert client.post("/api/v1/help/answer", headers=headers, content=b"{}").status_code == 403


# -- the audit trail -----------------------------------------------------------


def test_who_came_and_went_and_was_refused_is_on_record(node, client):
    make_admin(node, client)
    said = {"name": "Ana", "role": "operator", "secret": PIN}
    assert client.post("/api/v1/accounts", json=said, headers=ORIGIN).status_code == 204
    sign_in(client, secret="000000")
    told = client.get("/api/v1/audit").json()
    assert [(row["what"], row["who"], row["subject"]) for row in reversed(told["rows"])] == [
        ("account.first", "root", "root"),
        ("session.open", "root", ""),
        ("account.add", "root", "Ana"),
        ("session.refused", "Ana", ""),
    ]
    assert (told["checked_to"], told["broken_at"]) == (4, None)
    assert len(client.get("/api/v1/audit", params={"words": "REFUSED"}).json()["rows"]) == 1
    assert client.get("/api/v1/audit.csv").text.count("\n") == 5


@pytest.mark.parametrize(
    "meddle",
    [
        "UPDATE audit SET body = replace(body, 'Ana', 'Eve') WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 2",
        "UPDATE audit SET body = 'no json' WHERE seq = 2",
    ],
)
def test_a_row_that_was_meddled_with_breaks_the_chain_at_its_place(node, meddle):
    trail = AuditTrail(node.file, now=node.now)
    for number in range(4):
        trail.put(Deed(what=f"deed {number}", who="Ana", role="operator", where="here"))
    assert trail.check().broken_at is None
    with node.file.transaction() as db:
        db.execute(meddle)
    assert trail.check().broken_at == 2
    assert len(trail.rows(limit=10)) >= 3


def test_a_deed_and_its_row_are_there_together_or_not_at_all(node, accounts):
    with node.file.transaction() as db:
        db.execute("DROP TABLE audit")
    with pytest.raises(PanelUnavailableError):
        accounts.add("Ana", Role.OPERATOR, PIN, by=BY)
    with node.file.transaction() as db:
        assert db.execute("SELECT count(*) FROM account").fetchone() == (0,)
    assert accounts.all() == []


def test_what_somebody_typed_is_no_formula_in_the_table(node, client):
    make_admin(node, client)
    AuditTrail(node.file, now=node.now).put(
        Deed(what="x", who="root", role="admin", where="here", reason="=cmd()")
    )
    assert "'=cmd()" in client.get("/api/v1/audit.csv").text
