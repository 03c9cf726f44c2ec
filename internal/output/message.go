// Package output brings events from where they are found to where they leave
// this process: a queue that never holds up the probing, and a keeper that has
// them on disk. An event is a value until it leaves, and written as JSON once.
package output

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"st2ha/internal/heal"
	"st2ha/internal/incident"
)

// Message is one event on its way out: one of the three.
type Message struct {
	Change *incident.Event // a change of state
	Heal   *heal.Event     // what was healed, or given up
	JSON   []byte          // what another process has written
}

// Line is the message as one line of JSON, without its end.
func (m Message) Line() ([]byte, error) {
	if m.JSON != nil {
		return m.JSON, nil
	}
	var event any = m.Heal
	if m.Change != nil {
		event = m.Change
	}
	line, err := json.Marshal(event)
	if err != nil {
		return nil, fmt.Errorf("write an event as JSON: %w", err)
	}
	return line, nil
}

// LineID is the name of a line, by which it is acknowledged.
func LineID(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:12])
}

// Writer takes messages. It returns when one is in safe hands.
type Writer interface {
	Put(Message) error
}
