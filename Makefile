# Needs Go and, except for lint, a redis-server, which scripts/redis.sh finds or installs; test
# also needs a Chromium, for which scripts/chromium.sh does the same.

# Every module of the repository. tools/ has the tools of lint.
MODULES := . examples benchmarks tools cmd/redch otelchannels promchannels

# Each module is built by its own go.mod, as its users do. A module of WORKSPACE is built by go.work: it
# requires the library without a replace directive, and no version of that has been released yet.
WORKSPACE := cmd/redch otelchannels promchannels
export GOWORK := off

# Sets GOWORK for the module of the variable $$module.
IN_WORKSPACE := case " $(WORKSPACE) " in *" $$module "*) export GOWORK="$(CURDIR)/go.work";; esac

RACE        ?= -race
TESTTIMEOUT ?= 15m
FUZZTIME    ?= 30s
SOAK        ?= 60s
SUITES      ?= ./...

# A shell command that sets REDIS_SERVER, or ends the recipe with words that tell what to
# install. A server that exists only at REDIS_ADDR leaves it empty.
REDIS := REDIS_SERVER="$$(scripts/redis.sh)" && export REDIS_SERVER

# The same for CHROMIUM.
BROWSER := CHROMIUM="$$(scripts/chromium.sh)" && export CHROMIUM

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The package whose tests take longest, in the first module: it begins first, beside the others.
SLOWEST = $$([ "$$module" != . ] || echo ./tests)

.PHONY: test
test: ## run the tests of all modules with the race detector (RACE= without, TESTTIMEOUT=15m)
	@$(REDIS) && $(BROWSER) && export REQUIRE_REDIS=1 REQUIRE_CHROMIUM=1 && failed= && \
	for module in $(MODULES); do \
		echo "go test $(RACE) ./... ($$module)"; \
		(cd $$module && $(IN_WORKSPACE) && go test $(RACE) -count=1 -timeout $(TESTTIMEOUT) $(SLOWEST) ./...) || failed="$$failed $$module"; \
	done && \
	echo "go test -run Allocations (the race detector makes allocations of its own)" && \
	{ go test -count=1 -timeout $(TESTTIMEOUT) -run Allocations . ./tests || failed="$$failed allocations"; } && \
	if [ -n "$$failed" ]; then echo "tests failed in:$$failed"; exit 1; fi

.PHONY: test-servers
test-servers: RACE =
test-servers: ## run the tests of the library with each of SERVERS="path ..." (RACE=-race, SUITES=./...)
	@REQUIRE_REDIS=1 scripts/servers.sh run go test $(RACE) -count=1 -timeout $(TESTTIMEOUT) $(SUITES)

.PHONY: lint
lint: ## check the workflows, the format, go vet, staticcheck, tools/lint and the words of the prose
	@root="$$PWD" && cd tools && go tool actionlint "$$root"/.github/workflows/*.yml
	@unformatted="$$(gofmt -l .)" && \
	if [ -n "$$unformatted" ]; then echo "not in the form of gofmt:"; echo "$$unformatted"; exit 1; fi
	@mkdir -p .cache && cd tools && go build -o ../.cache/lint ./lint
	@root="$$PWD" && failed= && \
	staticcheck="$$(cd tools && go tool -n staticcheck)" && \
	for module in $(MODULES); do \
		echo "go vet, staticcheck, tools/lint ($$module)"; \
		(cd $$module && $(IN_WORKSPACE) && go vet ./... && go vet -vettool="$$root/.cache/lint" ./... && "$$staticcheck" ./...) || failed="$$failed $$module"; \
	done && \
	echo "docs/configuration.md" && \
	{ (cd tools && go run ./configs -check ..) || failed="$$failed docs/configuration.md"; } && \
	echo "words" && \
	{ (cd tools && go run ./words ..) || failed="$$failed words"; } && \
	if [ -n "$$failed" ]; then echo "lint failed in:$$failed"; exit 1; fi

.PHONY: docs
docs: ## write docs/configuration.md from the comments of the code
	@cd tools && go run ./configs ..

.PHONY: bench
bench: ## measure against watermill-redisstream, go-redis and rueidis (BENCHFLAGS=-h)
	@$(REDIS) && cd benchmarks && go run . $(BENCHFLAGS)

.PHONY: soak
soak: ## run the soak tests for SOAK=60s (SOAK_SEED=n repeats the faults of a run)
	@$(REDIS) && export REQUIRE_REDIS=1 SOAK=$(SOAK) && \
	go test -p 1 -run '^TestSoak' -count=1 -timeout 0 -v ./soak ./tests && \
	module=cmd/redch && cd $$module && $(IN_WORKSPACE) && go test -run '^TestSoak' -count=1 -timeout 0 -v .

.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME=30s
	@for module in $(MODULES); do \
		cd "$(CURDIR)/$$module" && $(IN_WORKSPACE) || exit 1; \
		for package in $$(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...); do \
			names="$$(go test -list '^Fuzz' "$$package")" || { echo "$$names"; exit 1; }; \
			for name in $$(echo "$$names" | grep '^Fuzz'); do \
				echo "$$package $$name"; \
				go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$package" || exit 1; \
			done; \
		done; \
	done

.PHONY: redis
redis: ## find or install the redis-server of the tests and print its path
	@scripts/redis.sh

.PHONY: browser
browser: ## find or install the Chromium of the tests and print its path
	@scripts/chromium.sh
