package stackstorm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/fault"
)

// API is StackStorm's own (st2common/openapi.yaml), as an action reaches it.
type API struct {
	URL   string // with its version, as the runner's ST2_ACTION_API_URL has it: http://127.0.0.1:9101/v1
	Token string // ST2_ACTION_AUTH_TOKEN
}

// NewAPI checks what the runner gives an action in its environment.
func NewAPI(address, token string) (*API, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fault.Usage("ST2_ACTION_API_URL is not the URL of StackStorm's API: run this as an action, or " +
			"set it (http://127.0.0.1:9101/v1) and ST2_ACTION_AUTH_TOKEN")
	}
	if token == "" {
		return nil, fault.Usage("ST2_ACTION_AUTH_TOKEN is empty: run this as an action, or set it to what st2 auth " +
			"prints")
	}
	return &API{URL: strings.TrimRight(address, "/"), Token: token}, nil
}

const (
	callTime = 30 * time.Second // bounds one call
	maxBody  = 64 << 20         // bytes of an answer
	maxList  = 10000            // executions of a list
)

// call makes one call, and decodes the answer into into unless that is nil.
func (a *API) call(ctx context.Context, method, path string, query url.Values, body, into any) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("StackStorm's API: %s %s: %w", method, path, err)
		}
		reader = bytes.NewReader(data)
	}
	address := a.URL + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, address, reader)
	if err != nil {
		return nil, fmt.Errorf("StackStorm's API: %s %s: %w", method, path, err)
	}
	request.Header.Set("X-Auth-Token", a.Token)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fault.Failed("api", "look at st2ctl status and at the log of st2api", "StackStorm's API: %w", err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	if err == nil && len(data) > maxBody {
		err = fmt.Errorf("the answer has more than %d MiB", maxBody>>20)
	}
	if err != nil {
		return nil, fault.Failed("api", "look at the log of st2api", "StackStorm's API: %s %s: %w", method, path, err)
	}
	if response.StatusCode/100 != 2 {
		return nil, refusedCall(method, path, response, data)
	}
	if into != nil {
		if err := json.Unmarshal(data, into); err != nil {
			return nil, fmt.Errorf("StackStorm's API: %s %s answered no JSON: %w", method, path, err)
		}
	}
	return response.Header, nil
}

// refusal is an answer of the API that is an error.
type refusal struct {
	code  int
	words string
}

func (r *refusal) Error() string { return r.words }

// refusedCall is an answer that is an error: st2common/router.py has its words
// in faultstring.
func refusedCall(method, path string, response *http.Response, data []byte) error {
	var said struct {
		Words string `json:"faultstring"`
	}
	status := response.Status
	if json.Unmarshal(data, &said) == nil && said.Words != "" {
		status += ": " + said.Words
	}
	hint := "look at the log of st2api"
	if response.StatusCode == http.StatusUnauthorized || response.StatusCode == http.StatusForbidden {
		hint = "the token's user needs the right to do it (RBAC)"
	}
	return fault.Failed("api", hint, "StackStorm's API: %s %s: %w", method, path, &refusal{response.StatusCode, status})
}

// Trigger dispatches a trigger (st2api/controllers/v1/webhooks.py: the hook st2).
func (a *API) Trigger(ctx context.Context, trigger string, payload any) error {
	_, err := a.call(ctx, http.MethodPost, "/webhooks/st2", nil,
		map[string]any{"trigger": trigger, "payload": payload}, nil)
	return err
}

// Execution is what the API says of one, as far as a sweep has to know it.
type Execution struct {
	ID      string    `json:"id"`
	Status  string    `json:"status"`
	Parent  string    `json:"parent"`
	Delay   int64     `json:"delay"` // milliseconds before it is scheduled
	Started time.Time `json:"start_timestamp"`
	Ended   time.Time `json:"end_timestamp"`
	Action  struct {
		Ref string `json:"ref"`
	} `json:"action"`
	Runner struct {
		Name string `json:"name"`
	} `json:"runner"`
	LiveAction struct {
		Runner struct {
			Hostname string `json:"hostname"`
			PID      int    `json:"pid"`
		} `json:"runner_info"`
	} `json:"liveaction"`
	Log []struct {
		Status string    `json:"status"`
		At     time.Time `json:"timestamp"`
	} `json:"log"`
}

// since is when it came into its status.
func (e Execution) since() time.Time {
	last := e.Started
	for _, entry := range e.Log {
		if entry.Status == e.Status && entry.At.After(last) {
			last = entry.At
		}
	}
	return last
}

// pageSize is what the API gives at once (api.max_page_size).
const pageSize = 100

// Executions lists those that match a filter, oldest first; whole is false
// where there are more than maxList, and the newest are left out.
func (a *API) Executions(ctx context.Context, filter url.Values) (all []Execution, whole bool, err error) {
	for {
		page, total, err := a.page(ctx, filter, len(all), pageSize)
		if err != nil {
			return nil, false, err
		}
		all = append(all, page[:min(len(page), maxList-len(all))]...)
		if len(page) == 0 || len(all) >= min(total, maxList) {
			return all, total <= len(all), nil
		}
	}
}

// First is the oldest of those that match a filter, if there is any.
func (a *API) First(ctx context.Context, filter url.Values) (e Execution, found bool, err error) {
	page, _, err := a.page(ctx, filter, 0, 1)
	if err != nil || len(page) == 0 {
		return e, false, err
	}
	return page[0], true, nil
}

// page lists up to limit of those that match, from offset on, and how many there are.
func (a *API) page(ctx context.Context, filter url.Values, offset, limit int) (page []Execution, total int, err error) {
	query := url.Values{"sort_asc": {"true"}, "exclude_attributes": {"result,trigger_instance"},
		"offset": {strconv.Itoa(offset)}, "limit": {strconv.Itoa(limit)}}
	for key, values := range filter {
		query[key] = values
	}
	header, err := a.call(ctx, http.MethodGet, "/executions", query, nil, &page)
	if err != nil {
		return nil, 0, err
	}
	total, _ = strconv.Atoi(header.Get("X-Total-Count"))
	return page, total, nil
}

// Execution reads one.
func (a *API) Execution(ctx context.Context, id string) (Execution, error) {
	var e Execution
	_, err := a.call(ctx, http.MethodGet, "/executions/"+url.PathEscape(id),
		url.Values{"exclude_attributes": {"result,trigger_instance"}}, nil, &e)
	return e, err
}

// Abandon ends an execution whose end nobody can tell any more, as a runner
// that stops does with what it runs (st2common/services/executions.py).
func (a *API) Abandon(ctx context.Context, id, why string) error {
	_, err := a.call(ctx, http.MethodPut, "/executions/"+url.PathEscape(id), nil,
		map[string]any{"status": statusAbandoned, "result": map[string]any{"error": why}}, nil)
	return err
}

// Cancel cancels an execution, as StackStorm's garbage collector does with
// workflows that are orphaned (st2common/garbage_collection/executions.py).
func (a *API) Cancel(ctx context.Context, id string) error {
	_, err := a.call(ctx, http.MethodDelete, "/executions/"+url.PathEscape(id), nil, nil, nil)
	return err
}
