"""Debezium's own tests of restarts, offsets, slots, publications and snapshots, as far as they concern an outbox."""

from __future__ import annotations

from cases import RESTART
from outcomes import Differs, Outcome, Refused, Same
from sources import (
    DURABLE,
    HEARTBEATS,
    LISTS,
    MESSAGES,
    OFFSETS,
    PUBLICATIONS,
    READ,
    REFUSED,
    SETTINGS,
    SNAPSHOTS,
)

__all__ = ["DURABILITY"]

_COMPARED = Same(OFFSETS)
_PUBLICATION = Same(PUBLICATIONS)
_PARALLEL = Same(READ)
_CHANGES = Same("UPDATE, DELETE and TRUNCATE publish nothing")
_CUSTOM = Refused("snapshot.mode", "custom")
_HEARTBEAT = Same(HEARTBEATS)
_TOAST = Differs("only updates lack unchanged values, and they publish nothing; a large value is whole in its insert")
_ORIGIN = Differs("no record says from which server a row was replicated; `slot.stream.params` can leave them out")

DURABILITY: dict[str, dict[str, Outcome]] = {
    "PostgresConnectorIT": {
        "shouldConsumeMessagesFromSnapshot": Same(SNAPSHOTS),
        "shouldAllowForExportedSnapshot": _PARALLEL,
        "exportedSnapshotShouldNotSkipRecordOfParallelTx": _PARALLEL,
        "exportedSnapshotShouldNotSkipRecordOfParallelTxPgoutput": _PARALLEL,
        "shouldAllowForSelectiveSnapshot": Same(READ),
        "shouldPerformSnapshotOnceForInitialOnlySnapshotMode": Same(SNAPSHOTS),
        "shouldResumeStreamingFromSlotPositionForCustomSnapshot": _CUSTOM,
        "customSnapshotterSkipsTablesOnRestart": _CUSTOM,
        "shouldTakeColumnIncludeListFilterIntoAccount": Same(LISTS),
        "shouldRegularlyFlushLsn": Same(SETTINGS),
        "shouldAckLsnOnSourceByDefault": Same(SETTINGS),
        "shouldNotAckLsnOnSource": Refused("flush.lsn.source", "false"),
        "shouldNotAckLsnOnSourceInManualFlushMode": Refused("lsn.flush.mode", "manual"),
        "shouldNotFlushLsnOfUnmonitoredActivityInConnectorMode": Differs(
            "keepalives move the slot in each mode", SETTINGS
        ),
        "shouldFlushLsnOfUnmonitoredActivityInConnectorAndDriverMode": Same(SETTINGS),
        "shouldStopConnectorOnSlotRecreation": _COMPARED,
        "shouldSeekToCorrectOffset": _COMPARED,
        "shouldAdvanceOffsetToSlotWithTrustSlotStrategy": _COMPARED,
        "shouldSyncToGreaterLsnWithTrustGreaterLsnStrategy": _COMPARED,
        "testTrustGreaterLsnWithNonCapturedTableUpdates": _COMPARED,
        "shouldCreateFailOverSlot": Same(SETTINGS),
        "shouldNotCreateFailOverSlotByDefault": Same(SETTINGS),
        "shouldStartWithConnectorAndDriverMode": Same(SETTINGS),
        "shouldStartSuccessfullyWithinGuardrailLimits": Same(SETTINGS),
        "shouldExecuteOnConnectStatements": Same(READ),
        "testCustomPublicationNameUsed": _PUBLICATION,
        "shouldConfigureSubscriptionsForAllTablesByDefault": _PUBLICATION,
        "shouldProduceOnlyLogicalDecodingMessages": Same(MESSAGES),
        "shouldThrowWhenAutocreationIsDisabled": Same(REFUSED),
        "shouldCreatePublicationWhenReplicationSlotExists": _PUBLICATION,
        "shouldConfigureSubscriptionsFromTableFilters": _PUBLICATION,
        "shouldUpdatePublicationForConfiguredTables": _PUBLICATION,
        "shouldUpdateExistingPublicationForConfiguredPartitionedTables": _PUBLICATION,
        "shouldThrowWhenTableFiltersIsEmpty": Same(REFUSED),
        "shouldPropagateSkippedOperationsWhenUpdatingFilteredPublication": Differs(
            "which operations a publication has is left as it is"
        ),
        "shouldReselectToastColumnsOnPrimaryKeyChange": Refused("post.processors", "reselector"),
        "shouldNotReemitConsumedLogicalMessageAfterRestart": Same(MESSAGES),
    },
    "RecordsStreamProducerIT": {
        "shouldReceiveChangesAfterConnectionRestart": Same(RESTART),
        "stopInTheMiddleOfTxAndResume": Same(DURABLE),
        "restartConnectorInTheMiddleOfUncommittedTx": Same(DURABLE),
        "shouldStartConsumingFromSlotLocation": _COMPARED,
        "shouldReceiveUpdateSchemaAfterConnectionRestart": Same(DURABLE),
        "shouldNotLoseEventsWhenMultipleDmlEventsShareSameLsn": Same("COPY"),
        "shouldResumeStreamingAfterRestartWhenLastEventWasNonTransactionalMessage": Same(MESSAGES),
        "shouldResumeStreamingAfterMessageBetweenTransactions": Same(MESSAGES),
        "shouldHandleMessageOperationInWalPositionSearch": Same(MESSAGES),
        "shouldProcessTruncateMessages": _CHANGES,
        "shouldSkipTruncateMessagesWithSkipped": _CHANGES,
        "shouldNotPropagateUnchangedToastedData": _TOAST,
        "shouldHandleToasted… (18 cases)": _TOAST,
        "shouldReceiveHeartbeatAlsoWhenChangingNonIncludedTable": _HEARTBEAT,
        "testEmptyChangesProducesHeartbeat": _HEARTBEAT,
        "shouldSendHeartbeatBasedOnDefinedInterval": _HEARTBEAT,
        "testSendingHeartbeatsWithoutWalUpdates": _HEARTBEAT,
        "testHeartbeatActionQueryExecuted": _HEARTBEAT,
        "shouldNotLeakOriginInfoBetweenTransactions": _ORIGIN,
        "shouldPreserveOriginInfoAfterConnectorRestartMidTransaction": _ORIGIN,
    },
}
