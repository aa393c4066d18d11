"""A client that has nothing but the .proto: generated on the fly, in a process of its own that can't see riverrun."""

import subprocess
import sys
from pathlib import Path

import riverrun
from riverrun.models.synthetic import colour

CLIENT = """
import queue, sys
import grpc
import riverrun_pb2 as pb, riverrun_pb2_grpc as rpc

channel = grpc.insecure_channel(sys.argv[1])
sessions = rpc.SessionsStub(channel)
request = pb.CreateSessionRequest(graph="synthetic", seed=5)
request.params.update({"prompt": "sea"})
session = sessions.Create(request, timeout=20)
outbox = queue.Queue()
opening = pb.Open(session_id=session.session_id, role=pb.ROLE_CONTROLLER, resume_token=session.resume_token)
opening.ports.add(port="frames", credits=8)
outbox.put(pb.ClientMessage(open=opening))
call = rpc.StreamsStub(channel).Connect(iter(outbox.get, None), timeout=20)
frames, applied, closing = 0, False, False
for message in call:
    kind = message.WhichOneof("message")
    if kind == "frame":
        frame = message.frame
        print("frame", frame.frame, frame.chunk, *frame.data[-3:])
        frames += 1
        if frames == 8:
            outbox.put(pb.ClientMessage(control=pb.Control(revision=1, prompt="sand")))
            outbox.put(pb.ClientMessage(credit=pb.Credit(port="frames", frames=500)))
    elif kind == "receipt":
        print("receipt", pb.Receipt.Stage.Name(message.receipt.stage), message.receipt.chunk)
        applied = message.receipt.stage == pb.Receipt.STAGE_APPLIED
    if frames >= 24 and applied and not closing:
        closing = True
        outbox.put(None)
        sessions.Close(pb.CloseSessionRequest(session_id=session.session_id, reason="seen enough"), timeout=20)
print("state", pb.SessionState.Name(sessions.Get(pb.GetSessionRequest(session_id=session.session_id)).state))
"""


def test_a_client_generated_from_the_proto_alone(running, tmp_path):
    proto = Path(riverrun.__file__).parent / "protos" / "riverrun.proto"
    generate = ["-m", "grpc_tools.protoc", f"-I{proto.parent}", "--python_out=.", "--grpc_python_out=.", proto.name]
    subprocess.run([sys.executable, *generate], cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "client.py").write_text(CLIENT)
    command = [sys.executable, "client.py", running.service.address]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    receipts = [line[1:] for line in lines if line[0] == "receipt"]
    assert [stage for stage, _ in receipts] == ["STAGE_RECEIVED", "STAGE_APPLIED"]
    switch = int(receipts[1][1])
    frames = [[int(word) for word in line[1:]] for line in lines if line[0] == "frame"]
    assert [frame[0] for frame in frames] == list(range(max(24, len(frames))))
    for _, chunk, *rgb in frames:
        assert rgb == colour(5, "sand" if chunk >= switch else "sea", chunk).tolist()
    assert lines[-1] == ["state", "SESSION_STATE_CLOSED"]
