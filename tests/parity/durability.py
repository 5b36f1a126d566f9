"""Debezium's own tests of restarts, offsets, slots, publications and snapshots, as far as they concern an outbox."""

from __future__ import annotations

from cases import RESTART
from outcomes import Differs, Ours, Outcome, Refused, Same
from sources import DURABLE, HEARTBEATS, LISTS, MESSAGES, PUBLICATIONS, SNAPSHOTS

__all__ = ["DURABILITY"]

_SLOT = "tests/integration/test_slot.py"
_RELAY = "tests/integration/test_relay_integration.py"
_SNAPSHOT = "tests/integration/test_snapshot.py"
_COMPARED = Ours(_SLOT, "test_a_stored_position_is_compared_with_slot_and_server")
_PUBLICATION = Same(PUBLICATIONS)
_PARALLEL = Ours(_SNAPSHOT, "test_rows_that_are_there_come_in_order_and_those_after_it_by_the_stream")
_FAILOVER = Ours(
    "tests/integration/test_failover.py",
    "test_a_failover_with_a_failover_slot_loses_nothing_and_without_one_says_what_may_be_missing",
)
_IDLE = Ours(_RELAY, "test_an_idle_relay_lets_the_server_forget_wal")
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
        "shouldAllowForSelectiveSnapshot": Ours(_SNAPSHOT, "test_what_is_read_and_how_it_is_stamped_can_be_said"),
        "shouldPerformSnapshotOnceForInitialOnlySnapshotMode": Same(SNAPSHOTS),
        "shouldResumeStreamingFromSlotPositionForCustomSnapshot": _CUSTOM,
        "customSnapshotterSkipsTablesOnRestart": _CUSTOM,
        "shouldTakeColumnIncludeListFilterIntoAccount": Same(LISTS),
        "shouldRegularlyFlushLsn": Ours(_RELAY, "test_after_a_drain_the_position_is_stored_and_nothing_comes_again"),
        "shouldAckLsnOnSourceByDefault": Ours(_SLOT, "test_what_was_not_confirmed_comes_again_and_what_was_does_not"),
        "shouldNotAckLsnOnSource": Refused("flush.lsn.source", "false"),
        "shouldNotAckLsnOnSourceInManualFlushMode": Refused("lsn.flush.mode", "manual"),
        "shouldNotFlushLsnOfUnmonitoredActivityInConnectorMode": Differs("keepalives move the slot in each mode"),
        "shouldFlushLsnOfUnmonitoredActivityInConnectorAndDriverMode": _IDLE,
        "shouldStopConnectorOnSlotRecreation": Ours(_RELAY, "test_a_recreated_slot_is_noticed"),
        "shouldSeekToCorrectOffset": _COMPARED,
        "shouldAdvanceOffsetToSlotWithTrustSlotStrategy": Ours(
            "tests/integration/test_handover.py", "test_debezium_native_debezium_on_one_slot_under_load_loses_nothing"
        ),
        "shouldSyncToGreaterLsnWithTrustGreaterLsnStrategy": _COMPARED,
        "testTrustGreaterLsnWithNonCapturedTableUpdates": _COMPARED,
        "shouldCreateFailOverSlot": _FAILOVER,
        "shouldCreatePublicationWhenReplicationSlotExists": _PUBLICATION,
        "shouldConfigureSubscriptionsFromTableFilters": _PUBLICATION,
        "shouldUpdatePublicationForConfiguredTables": _PUBLICATION,
        "shouldUpdateExistingPublicationForConfiguredPartitionedTables": _PUBLICATION,
        "shouldThrowWhenTableFiltersIsEmpty": Ours(
            "tests/parity/test_publication.py",
            "test_what_stands_in_the_way_of_a_publication_is_told_with_its_remedy",
        ),
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
        "shouldStartConsumingFromSlotLocation": Ours(
            _SLOT, "test_what_was_not_confirmed_comes_again_and_what_was_does_not"
        ),
        "shouldReceiveUpdateSchemaAfterConnectionRestart": Ours(
            _RELAY, "test_columns_added_while_running_change_nothing"
        ),
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
        "testHeartbeatActionQueryExecuted": Ours(
            _RELAY, "test_the_active_relay_alone_runs_the_heartbeats_query_and_survives_its_failure"
        ),
        "shouldNotLeakOriginInfoBetweenTransactions": _ORIGIN,
        "shouldPreserveOriginInfoAfterConnectorRestartMidTransaction": _ORIGIN,
    },
}
