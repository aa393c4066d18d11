"""The unary services: Sessions, Jobs, Cluster. Each method reads a request, asks the host or the desk, and answers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from riverrun import __version__
from riverrun.actors import messages
from riverrun.actors.auth import caller, check_role
from riverrun.actors.directory import Directory
from riverrun.actors.errors import mapped, unary
from riverrun.actors.host import SessionHost, SessionWish
from riverrun.actors.job import Job, JobSpec
from riverrun.actors.jobs import JobDesk
from riverrun.actors.principal import Role
from riverrun.actors.requests import control_of, reason_of, seconds_of, traceparent, values_of
from riverrun.graphs.script import TimedControl
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc

MAX_PAGE = 200
DRAIN_S = 60.0
MARGIN_S = 30.0
"""Sessions that could not move are being suspended then."""

LOADING_S = 20.0
"""ListModels and ListGraphs wait so long for models that are still loading."""

STARTING_S = 45.0
"""ListModels so long for one that it starts."""

Context = grpc.aio.ServicerContext


class Sessions(rpc.SessionsServicer):
    """See the proto."""

    def __init__(self, host: SessionHost, gateways: list[str]) -> None:
        self._host, self._gateways = host, gateways

    @unary
    async def Create(self, request: pb.CreateSessionRequest, context: Context) -> pb.Session:
        wish = SessionWish(
            graph=request.graph,
            params=values_of(request.params),
            seed=request.seed,
            client_id=request.client_id,
            idle_timeout_s=seconds_of(request.idle_timeout, "idle_timeout"),
            max_frames=request.max_frames,
            lead_s=seconds_of(request.lead, "lead") if request.HasField("lead") else None,
            tenant=caller().tenant,
            trace=traceparent(context),
        )
        return messages.live_session(await self._host.create(wish), self._gateways, with_token=True)

    @unary
    async def Get(self, request: pb.GetSessionRequest, context: Context) -> pb.Session:
        return await self._session(request.session_id)

    @unary
    async def List(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        size = min(request.page_size or 50, MAX_PAGE)
        page = await self._host.store.page(size, request.page_token, request.include_ended, caller().scope)
        found = []
        for record in await self._host.elsewhere.shown(page.records):
            if hosted := self._host.find(record.id):
                found.append(messages.live_session(hosted))
            elif request.include_ended or not record.state.ended:
                found.append(messages.stored_session(record))
        return pb.ListSessionsResponse(sessions=found, next_page_token=page.token)

    @unary
    async def Close(self, request: pb.CloseSessionRequest, context: Context) -> pb.Session:
        await self._host.check_owner(request.session_id, caller())
        await self._host.close(request.session_id, reason_of(request.reason, "closed by a client"))
        return await self._session(request.session_id)

    @unary
    async def Suspend(self, request: pb.SuspendSessionRequest, context: Context) -> pb.Session:
        await self._host.check_owner(request.session_id, caller())
        await self._host.suspend(request.session_id, reason_of(request.reason, "suspended by a client"))
        return await self._session(request.session_id)

    @unary
    async def Resume(self, request: pb.ResumeSessionRequest, context: Context) -> pb.Session:
        await self._host.check_owner(request.session_id, caller())
        hosted = await self._host.reach(request.session_id, request.resume_token)
        self._host.check_token(hosted, request.resume_token)
        return messages.live_session(hosted, self._gateways)

    @unary
    async def Migrate(self, request: pb.MigrateSessionRequest, context: Context) -> pb.Session:
        await self._host.check_owner(request.session_id, caller())
        await self._host.migrate(request.session_id, request.stage, request.actor)
        return await self._session(request.session_id)

    async def _session(self, session: str) -> pb.Session:
        await self._host.check_owner(session, caller())
        if hosted := self._host.find(session):
            return messages.live_session(hosted)
        (record,) = await self._host.elsewhere.shown([await self._host.elsewhere.record(session)])
        return messages.stored_session(record)


class Jobs(rpc.JobsServicer):
    """See the proto."""

    def __init__(self, desk: JobDesk) -> None:
        self._desk = desk

    @unary
    async def Submit(self, request: pb.SubmitJobRequest, context: Context) -> pb.Job:
        spec = JobSpec(
            graph=request.graph,
            params=values_of(request.params),
            seed=request.seed,
            client_id=request.client_id,
            frames=request.frames,
            controls=tuple(TimedControl(c.at_frame, control_of(c.control), c.control.stage) for c in request.controls),
            sinks=dict(request.sinks),
            tenant=caller().tenant,
        )
        return _job(await self._desk.submit(spec))

    @unary
    async def Get(self, request: pb.GetJobRequest, context: Context) -> pb.Job:
        return _job(await self._desk.get(request.job_id, caller()))

    @unary
    async def List(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        return pb.ListJobsResponse(jobs=[_job(job) for job in await self._desk.all(caller())])

    @unary
    async def Cancel(self, request: pb.CancelJobRequest, context: Context) -> pb.Job:
        return _job(await self._desk.cancel(request.job_id, caller()))

    async def Watch(self, request: pb.GetJobRequest, context: Context) -> AsyncIterator[pb.Job]:
        async with mapped(context):
            async for job in self._desk.watch(request.job_id, caller()):
                yield _job(job)


class Cluster(rpc.ClusterServicer):
    """See the proto. store: what kind it is, for `Status`."""

    def __init__(self, host: SessionHost, directory: Directory, store: str) -> None:
        self._host, self._directory, self._store = host, directory, store

    @unary
    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        actors = [messages.actor(member) for member in await self._directory.actors()]
        for actor in actors if caller().scope is not None else ():  # where they run is the operators' business
            actor.ClearField("node")
            actor.ClearField("pid")
        return pb.StatusResponse(
            version=__version__,
            actors=actors,
            sessions=self._host.count(caller()),
            store=self._store,
            frozen=await self._directory.is_frozen(),
        )

    @unary
    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        if request.start:
            check_role(caller(), Role.CONTROLLER, "to start models")
        infos = await self._directory.infos(STARTING_S if request.start else LOADING_S, request.start)
        models = self._directory.models
        return pb.ListModelsResponse(models=[messages.model(c, infos.get(name)) for name, c in models.items()])

    @unary
    async def ListGraphs(self, request: pb.ListGraphsRequest, context: Context) -> pb.ListGraphsResponse:
        infos = await self._directory.infos(LOADING_S)
        graphs = self._directory.graphs.values()
        return pb.ListGraphsResponse(graphs=[messages.graph(each, infos) for each in graphs])

    @unary
    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        seconds = seconds_of(request.deadline, "deadline") if request.HasField("deadline") else DRAIN_S
        if request.undo:
            await self._directory.cordon("", 0.0)
            return pb.DrainResponse()
        actors = await self._directory.cordon(request.target, seconds)
        left = await self._directory.emptied(actors, seconds + MARGIN_S)
        return pb.DrainResponse(actors=actors, sessions=left)

    @unary
    async def Upgrade(self, request: pb.UpgradeRequest, context: Context) -> pb.UpgradeResponse:
        seconds = seconds_of(request.deadline, "deadline") if request.HasField("deadline") else DRAIN_S
        before = await self._directory.renew(request.actor, seconds)
        left = await self._directory.emptied([before], seconds + MARGIN_S) if before else 0
        return pb.UpgradeResponse(incarnation_left=before, sessions=left)

    @unary
    async def Freeze(self, request: pb.FreezeRequest, context: Context) -> pb.FreezeResponse:
        await self._directory.freeze(not request.thaw)
        return pb.FreezeResponse()

    @unary
    async def Why(self, request: pb.WhyRequest, context: Context) -> pb.WhyResponse:
        found = await self._directory.why(request.session_id)
        return pb.WhyResponse(decisions=[messages.decision(each) for each in found])


def _job(job: Job) -> pb.Job:
    return pb.Job(
        job_id=job.id,
        graph=job.spec.graph,
        state=f"JOB_STATE_{job.state.name}",
        reason=job.reason,
        frames_done=job.frames_done,
        frames_total=job.spec.frames,
        sinks=job.spec.sinks,
        created=messages.timestamp(job.created),
        session_id=job.session,
    )
