package stackstorm

// Queues are what a unit consumes, without the prefix that [messaging] prefix
// gives them (st2common/transport/queues.py). Other units have queues without
// a name, which cannot be asked for.
func Queues(unit string) []string {
	switch unit {
	case runnerUnit:
		return []string{"actionrunner.work", "actionrunner.cancel", "actionrunner.pause", "actionrunner.resume"}
	case "st2scheduler":
		return []string{"actionrunner.req"}
	case "st2notifier":
		return []string{"notifiers.execution.work"}
	case "st2rulesengine":
		return []string{"trigger_instances_dispatch.rules_engine"}
	case "st2workflowengine":
		return []string{"workflow.work", "workflow.resume", "workflow.action.update"}
	}
	return nil
}

// runnerUnit starts the workers st2actionrunner@1 and on, and stays active
// whatever becomes of them.
const runnerUnit = "st2actionrunner"
