# st2ha: make build, make check, make lab, make test, make bench, make pack, make release; see README.md.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# The toolchain of go.mod, fetched through the module proxy where the machine has an older one.
export GOTOOLCHAIN := $(shell sed -n 's/^toolchain //p' go.mod)
GOOS ?= linux
GOARCH ?= $(shell go env GOARCH)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Executions, not seconds: at the end of a time, go test -fuzz may fail with "context deadline exceeded" (golang/go#75804).
FUZZTIME ?= 20000x
.PHONY: build pack release lab lab-down test check setup lint vuln unit killed install-test workflow page sensor lab-fast lab-uml lab-long lab-faults scale fuzz bench clean

build: ## the programs that the launcher actions/st2ha runs, static and the same wherever they are built; two at once do no harm
	@new=$$(mktemp -d .build.XXXXXX); trap "rm -rf $$new" EXIT; mkdir -p bin; \
	for program in cmd/*; do \
	  name=$${program#cmd/}-$(GOOS)-$(GOARCH); \
	  CGO_ENABLED=0 GOOS=$(GOOS) GOARCH=$(GOARCH) go build -trimpath -buildvcs=false -ldflags='-s -w' -o $$new/$$name ./$$program; \
	  mv $$new/$$name bin/$$name; \
	done

pack: ## the pack as a release has it, a directory and a .tgz in dist/
	@tools/release.sh pack

release: ## a commit with the tag v$(VERSION), which has the programs; on no branch
	@tools/release.sh release $(VERSION)

lab: ## the main job on two real nodes on this machine; KEEP=1 leaves them up
	@KEEP=$(KEEP) test/lab/main.sh

lab-down: ## ends a lab that KEEP=1 left up
	@test/lab/lab.sh down

test: ## everything, with a table at its end; what only computes runs beside the rest
	@TEST_ALL=1 KILLS=3 test/all.sh setup unit sensor lab-uml lab-faults -- fuzz install-test lint vuln workflow page killed lab-fast

check: ## what needs no nodes, in minutes: format, lint, unit tests, all metadata, workflows, sensor
	@test/all.sh lint unit sensor -- workflow

setup: ## what the tests need on a bare Debian 12 machine with Go
	@test/setup.sh
	@test/lab/setup.sh

lint:
	@test -z "$$(gofmt -l cmd internal test tools examples | tee /dev/stderr)"
	go vet ./...
	go vet -tags crash ./internal/cli
	go run $(STATICCHECK) ./...
	shellcheck actions/st2ha tools/release.sh
	dash -n actions/st2ha

vuln: ## known vulnerabilities
	@test/vuln.sh

unit: ## most wait for servers, so more run side by side than there are CPUs; confedit, without -race: it has no goroutines, and 10 MB to edit
	go test -race -timeout 15m -p 3 -parallel 4 -skip '^TestKilledAtEachChange$$' $$(go list ./... | grep -vE '/(test/(lab|install|page)|internal/confedit)$$')
	go test -timeout 5m ./internal/confedit

killed: ## the program killed at each change it makes, here and over SSH: gone on with, undone
	go test -count=1 -timeout 30m -v -run '^TestKilledAtEachChange$$' ./cmd/st2ha

install-test: ## the pack installed as StackStorm does it, and released; needs root, PyPI and the Go module proxy
	go test -count=1 -timeout 15m -v ./test/install

workflow: build ## the workflows under the real orquesta engine, and their metadata
	$$(test/workflow/setup.sh) test/workflow/run.py --pack . --inspect
	$$(test/workflow/setup.sh) test/workflow/test_run.py
	$$(test/workflow/setup.sh) test/workflow/test_pack.py

page: ## the page of cluster_status in a real browser: can everybody read it, does it look as it did; UPDATE=-update draws anew
	AXE=$$(test/page/setup.sh) go test -count=1 -timeout 5m -v ./test/page $(UPDATE)

sensor: ## the sensor, as it is and with StackStorm's eventlet patching, side by side; its rules
	@python=$$(test/workflow/setup.sh); said=$$(mktemp); trap "rm $$said" EXIT; code=0; \
	EVENTLET=1 $$python -W ignore::DeprecationWarning test/sensor/test_sensor.py >$$said 2>&1 & \
	$$python test/sensor/test_sensor.py || code=1; \
	wait $$! || code=1; echo "with eventlet's patching:"; cat $$said; exit $$code
	$$(test/workflow/setup.sh) test/sensor/test_rules.py

lab-fast: ## on fast nodes: bad input, two runs at once, MongoDB without logins, healing; killed at one change of six
	KILL_EVERY=6 go test -count=1 -timeout 30m -v ./test/lab -only=fast

lab-uml: ## on nodes with kernels of their own: join, again, undone, older nodes, secrets, killed, power cut
	KILL_EVERY=6 go test -count=1 -timeout 60m -v -skip '^TestFaults$$' ./test/lab -only=uml

lab-long: ## killed at each change, and the table of faults without a second try
	NO_REPEAT=1 go test -count=1 -timeout 120m -v -run '^(TestKilled.*|TestFaults)$$' ./test/lab

lab-faults: ## the table of faults, printed last, on nodes with kernels of their own; SOAK=1h makes its soak longer
	@table=$$(mktemp); code=0; \
	TABLE=$$table go test -count=1 -timeout 120m -v -run '^TestFaults$$' ./test/lab || code=$$?; \
	cat $$table; rm $$table; exit $$code

scale: ## how long 1, 2, 4 and 8 secondaries take to join at once, on fast nodes; into docs/
	@test/lab/scale.sh

fuzz: ## each fuzz target for FUZZTIME
	@test/fuzz.sh $(FUZZTIME)

bench: ## what watching takes of a node; a run of all steps that finds nothing to change, on fast and on slow nodes, and beside Ansible
	go test -run '^$$' -bench Footprint -benchtime 1x ./cmd/st2ha-watch
	@test/bench.sh

clean:
	rm -rf bin dist
