#!/usr/bin/env python3
"""Checks the test vectors beside this file by docs/wire.md alone, with the standard library alone.

It shares no code with the crates: it is the proof that the document is enough. Run it after every change of the
contract: `python3 crates/types/vectors/check.py`.
"""
import hashlib
import hmac
import json
import struct
from pathlib import Path

HERE = Path(__file__).parent
KEYS, DIGESTS, STATEMENTS, MACS, MESSAGES = (
    json.loads((HERE / f"{name}.json").read_text())
    for name in ("keys", "digests", "statements", "macs", "messages")
)
checked = 0


def same(what, ours, theirs):
    global checked
    assert ours == theirs, f"{what}: {ours} here, {theirs} in the file"
    checked += 1


# ---- X25519 (RFC 7748), not in constant time: for test vectors only ----

P = 2**255 - 19


def x25519(secret, point):
    k = int.from_bytes(secret, "little") & ~(7 | 1 << 255) | 1 << 254
    u = int.from_bytes(point, "little") & (1 << 255) - 1
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for bit in reversed(range(255)):
        if swap ^ (k >> bit & 1):
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = k >> bit & 1
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P, u * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swap:
        x2, x3, z2, z3 = x3, x2, z3, z2
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


# ---- canonical bytes (Borsh), digests, keys, MACs ----


def u8(n): return struct.pack("<B", n)
def u32(n): return struct.pack("<I", n)
def u64(n): return struct.pack("<Q", n)
def blob(b): return u32(len(b)) + b
def option(b): return b"\0" if b is None else b"\1" + b
def vector(items): return u32(len(items)) + b"".join(items)
def sha(*parts): return hashlib.sha256(b"".join(parts)).digest()


def process_id(name):
    if name.startswith("h"):
        host, twin = name[1:].split("/t")
        return u8(0) + u8(int(host)) + u8(int(twin))
    kind, number = name.split("-")
    return u8({"client": 1, "admin": 2}[kind]) + u32(int(number))


def hkdf(salt, secret, info):
    extracted = hmac.new(salt, secret, "sha256").digest()
    return hmac.new(extracted, info + b"\1", "sha256").digest()


SECRETS = {p["process"]: bytes.fromhex(p["secret"]) for p in KEYS["processes"]}
PUBLIC = {p["process"]: bytes.fromhex(p["public"]) for p in KEYS["processes"]}


def mac_key(sender, receiver):
    shared = x25519(SECRETS[sender], PUBLIC[receiver])
    context = blob(KEYS["cluster_id"].encode()) + u32(KEYS["key_epoch"])
    info = context + process_id(sender) + process_id(receiver)
    return shared, info, hkdf(b"twinbft/v1/mac-key", shared, info)


def mac(sender, receiver, tag, digest):
    return hmac.new(mac_key(sender, receiver)[2], tag + digest, "sha256").hexdigest()[:32]


for process in KEYS["processes"]:
    same("public", x25519(SECRETS[process["process"]], (9).to_bytes(32, "little")).hex(), process["public"])
    same("process id", process_id(process["process"]).hex(), process["process_id"])
for pair in KEYS["mac_keys"]:
    shared, info, key = mac_key(pair["sender"], pair["receiver"])
    same("shared", shared.hex(), pair["shared_secret"])
    same("info", info.hex(), pair["info"])
    same("key", key.hex(), pair["mac_key"])

references = []
for r in DIGESTS["requests"]:
    client = u32(r["client_key"]) + u64(r["session"])
    whole = client + u64(r["seq"]) + blob(bytes.fromhex(r["operation"]))
    same("request", whole.hex(), r["canonical"])
    same("request digest", sha(b"tbft/req", whole).hex(), r["digest"])
    references.append(client + u64(r["seq"]) + sha(b"tbft/req", whole))
batch = sha(b"tbft/bat", vector(references))
same("batch", batch.hex(), DIGESTS["batch"]["digest"])
same("empty batch", sha(b"tbft/bat", vector([])).hex(), DIGESTS["batch"]["empty_digest"])
h = DIGESTS["history"]
history = sha(b"tbft/his", bytes.fromhex(h["previous"]), u64(h["slot"]), batch, u64(h["timestamp_us"]))
same("history", history.hex(), h["digest"])
q = DIGESTS["query"]
client = u32(q["client_key"]) + u64(q["session"])
query = sha(b"tbft/qry", client, u64(q["nonce"]), blob(bytes.fromhex(q["operation"])))
same("query", query.hex(), q["digest"])
a = DIGESTS["query_answer"]
answer = sha(
    b"tbft/ans", u8(a["host"]), u8(a["twin"]), client, u64(a["nonce"]), option(None), u64(a["version"]),
    bytes.fromhex(a["result"]),
)
same("answer", answer.hex(), a["digest"])
results = vector([bytes.fromhex(d) for d in DIGESTS["results"]["result_digests"]])
same("results", sha(b"tbft/res", results).hex(), DIGESTS["results"]["digest"])

# ---- statements: host 1, incarnation 6 ----

D, H, V, N = b"\xdd" * 32, b"\xee" * 32, u64(5), u64(1000)
C, S = u32(0) + u64(1767225600000000), u64(42)
EXPECTED = {
    "ORDER": u8(0) + V + N + H,
    "ACK": u8(1) + V + N + H + option(u64(3)),
    "REPLY": u8(2) + option(None) + N + C + S + D,
    "REPLY, tentative": u8(2) + option(V) + N + C + S + D,
    "FORWARD": u8(3) + C + S + D,
    "CHECKPOINT": u8(4) + N + D,
    "HEARTBEAT": u8(5) + V + u64(9) + N + H,
    "WISH": u8(6) + V + u64(2) + u64(77),
    "VIEW-CHANGE": u8(7) + V + u64(4) + N + H + vector([u64(0), u64(1), u64(0)]),
    "NEW-VIEW": u8(8) + V + N + H + vector([u8(0) + D, u8(2) + D]),
    "COMMITTED": u8(9) + N + H,
    "SLOT-RESULT": u8(10) + N + H + D,
    "RECOVERY": u8(11) + u64(1) + D,
    "RECOVERY-ANSWER": u8(12) + u8(1) + u64(1) + D + V + N + H + vector([u64(0), u64(1), u64(0)]),
    "REPORT": u8(13) + u8(1) + u64(1) + D,
}
for s in STATEMENTS["signed"]:
    signed = u8(1) + u64(6) + EXPECTED[s["statement"]]
    same(s["statement"], signed.hex(), s["canonical"])
    same(s["statement"], sha(b"tbft/stm", signed).hex(), s["digest"])
same("kinds", len(STATEMENTS["signed"]), len(EXPECTED))

# ---- MACs ----

first = bytes.fromhex(DIGESTS["requests"][0]["digest"])
for m in MACS["request"]["macs"]:
    same("request MAC", mac("client-0", m["to"], b"tbft/req", first), m["mac"])
for m in MACS["query"]["macs"]:
    same("query MAC", mac("client-0", m["to"], b"tbft/qry", query), m["mac"])
same("answer MAC", mac("h2/t1", "client-0", b"tbft/ans", answer), MACS["query_answer"]["mac"])
result = sha(bytes.fromhex(MESSAGES["kv.Outcome, written"]))
reply = sha(b"tbft/stm", u8(0), u64(0), u8(2), option(None), u64(1), client, u64(1), result)
same("reply", reply.hex(), MACS["reply"]["digest"])
for m in MACS["reply"]["macs"]:
    same("reply MAC", mac(f"h0/t{m['twin']}", "client-0", b"tbft/stm", reply), m["mac"])
order = sha(b"tbft/stm", u8(0), u64(0), u8(0), u64(0), u64(1), history)
same("order", order.hex(), MACS["order"]["digest"])
receivers = [f"h{host}/t{twin}" for host in (1, 2) for twin in (0, 1)]
same("receivers", receivers, MACS["order"]["receivers"])
for authenticator in MACS["order"]["authenticators"]:
    sender = f"h0/t{authenticator['twin']}"
    ours = [mac(sender, to, b"tbft/stm", order) for to in receivers]
    same("authenticator", ours, authenticator["macs"])

# ---- protobuf ----


def varint(n):
    out = b""
    while n > 127:
        out, n = out + u8(n & 127 | 128), n >> 7
    return out + u8(n)


def number(field, n): return varint(field << 3) + varint(n) if n else b""
def data(field, b): return varint(field << 3 | 2) + varint(len(b)) + b


put = data(2, data(1, b"colour") + data(2, b"green"))
same("put", put.hex(), MESSAGES["kv.Operation, put"])
request = (
    number(1, 0) + number(2, q["session"]) + number(3, 1) + data(4, put) + number(5, 0)
    + data(6, b"".join(bytes.fromhex(m["mac"]) for m in MACS["request"]["macs"][:2]))
)
same("Request", request.hex(), MESSAGES["Request"])
same("retransmission", (request + number(7, 1)).hex(), MESSAGES["Request, retransmission"])
twin_macs = b"".join(
    data(10, number(1, m["twin"]) + data(2, bytes.fromhex(m["mac"]))) for m in MACS["reply"]["macs"]
)
head = number(3, 1) + number(6, q["session"]) + number(7, 1)
whole = head + data(8, bytes.fromhex(MESSAGES["kv.Outcome, written"])) + twin_macs
same("Reply", whole.hex(), MESSAGES["Reply, whole result"])
same("Reply, digest", (head + data(9, result) + twin_macs).hex(), MESSAGES["Reply, digest"])

print(f"{checked} values agree")
