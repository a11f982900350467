// Package awsfake is the frame of AWS services for tests: an HTTP server that speaks their JSON 1.1 wire format, checks
// each request's signature by making it again, and fails on demand.
//
// Requests are decoded into the AWS SDK's own input types, strictly, and answers are encoded by the SDK's own
// serializers, so a fake can't agree with Bulla on something that AWS does not say. It checks no IAM policies:
// [Server.Inject] answers what AWS would. What a service does is in the packages that start one. It is imported by tests
// only.
package awsfake

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/aws/smithy-go/transport/http/protocol/awsjson"
)

// Who may call, and where.
const (
	Account   = "123456789012"
	Region    = "eu-central-1"
	AccessKey = "AKIATESTBULLA"
	SecretKey = "test-secret-key"
)

const (
	jsonType = "application/x-amz-json-1.1"
	maxBody  = 2 << 20
)

// Service is what is behind the frame.
type Service struct {
	Name   string // in the scope of signatures, such as "kms"
	Target string // prefix of operations in X-Amz-Target, such as "TrentService."
	// Handle carries out an operation; see [Serve]. Its errors are those of [Refuse].
	Handle func(op string, body []byte) ([]byte, error)
}

// Fault is one way to fail the next calls. One of Code, Drop, Cut and Hang says how.
type Fault struct {
	Op     string // such as "Encrypt", or "" for any
	Times  int    // how many calls it hits; 0 is one
	Status int    // with Code; 0 is 400
	Code   string // answer this error
	Drop   bool   // close the connection instead of answering
	Cut    bool   // announce the whole answer, send half of it, close the connection
	Hang   bool   // do not answer before the caller gives up
	After  bool   // do what was asked first: the answer alone is lost
}

// Server is the fake. Its methods may be called at any time.
type Server struct {
	URL string

	service Service
	http    *httptest.Server

	mu     sync.Mutex // guards all below
	now    func() time.Time
	faults []*Fault
	calls  []string
}

// Start serves on a loopback port until the test ends.
func Start(t testing.TB, service Service) *Server {
	t.Helper()
	s := &Server{service: service, now: time.Now}
	h := httptest.NewServer(s)
	t.Cleanup(func() {
		h.CloseClientConnections() // also of calls that hang
		h.Close()
	})
	s.URL, s.http = h.URL, h
	return s
}

// Credentials are those that the fake accepts.
func Credentials() aws.CredentialsProvider {
	return credentials.NewStaticCredentialsProvider(AccessKey, SecretKey, "")
}

// SetNow gives the server a clock of its own, which signatures are checked against.
func (s *Server) SetNow(now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

// Inject adds a fault; several are used up in the order they were added.
func (s *Server) Inject(f Fault) {
	if f.Times == 0 {
		f.Times = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

// Recover takes back the faults that are left, and ends the calls that hang.
func (s *Server) Recover() {
	s.mu.Lock()
	s.faults = nil
	s.mu.Unlock()
	s.http.CloseClientConnections()
}

// Calls returns the operations that were asked for so far, failed ones too.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.calls...)
}

// apiError is an answer of AWS that says no.
type apiError struct {
	status        int
	code, message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

// Refuse is an answer of AWS that says no.
func Refuse(code, format string, args ...any) error {
	return &apiError{http.StatusBadRequest, code, fmt.Sprintf(format, args...)}
}

// ServeHTTP answers one call of an AWS client.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return
	}
	op := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), s.service.Target)
	fault := s.begin(op)
	if fault != nil && !fault.After {
		s.fail(w, r, fault, nil)
		return
	}
	out, err := s.handle(r, op, body)
	if fault != nil {
		s.fail(w, r, fault, out)
		return
	}
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", jsonType)
	w.Header().Set("X-Amzn-Requestid", requestID())
	_, _ = w.Write(out)
}

// begin notes the call and takes the first fault that is meant for it.
func (s *Server) begin(op string) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, op)
	for i, f := range s.faults {
		if f.Op != "" && f.Op != op {
			continue
		}
		if f.Times--; f.Times <= 0 {
			s.faults = append(s.faults[:i:i], s.faults[i+1:]...)
		}
		return f
	}
	return nil
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, f *Fault, out []byte) {
	switch {
	case f.Hang:
		<-r.Context().Done()
	case f.Drop:
		panic(http.ErrAbortHandler)
	case f.Cut:
		if out == nil {
			out = []byte(`{"Answer":"that is cut off"}`)
		}
		w.Header().Set("Content-Type", jsonType)
		w.Header().Set("Content-Length", strconv.Itoa(len(out)))
		_, _ = w.Write(out[:len(out)/2])
		_ = http.NewResponseController(w).Flush() // or the client would see no answer at all
		panic(http.ErrAbortHandler)
	default:
		status := f.Status
		if status == 0 {
			status = http.StatusBadRequest
		}
		writeError(w, &apiError{status, f.Code, "injected: this text must not be passed on"})
	}
}

func (s *Server) handle(r *http.Request, op string, body []byte) ([]byte, error) {
	if r.Method != http.MethodPost || r.URL.Path != "/" || r.Header.Get("Content-Type") != jsonType {
		return nil, Refuse("ValidationException", "%s %s of type %s", r.Method, r.URL.Path, r.Header.Get("Content-Type"))
	}
	s.mu.Lock()
	now := s.now()
	s.mu.Unlock()
	if err := authenticate(r, s.service.Name, body, now); err != nil {
		return nil, err
	}
	return s.service.Handle(op, body)
}

// Serve decodes the SDK's input type from body, and encodes the SDK's output type.
func Serve[I any, O any](body []byte, do func(*I) (*O, error)) ([]byte, error) {
	in := new(I)
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(in); err != nil {
		return nil, Refuse("SerializationException", "%v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, Refuse("SerializationException", "more than one value")
	}
	out, err := do(in)
	if err != nil {
		return nil, err
	}
	return encode(any(out).(smithy.Serializable))
}

// encode has the SDK's own code write an output, as if it were the input of a request.
func encode(out smithy.Serializable) ([]byte, error) {
	shape := func(name string, kind smithy.ShapeType) *smithy.Schema {
		return smithy.NewSchema(smithy.ShapeID{Namespace: "test", Name: name}, kind, 0)
	}
	protocol := awsjson.New11(smithy.NewServiceSchema(shape("Service", smithy.ShapeTypeService), "1"))
	operation := smithy.NewOperationSchema(shape("Operation", smithy.ShapeTypeOperation), shape("Input", smithy.ShapeTypeStructure), nil)
	r, ok := smithyhttp.NewStackRequest().(*smithyhttp.Request)
	if !ok {
		return nil, errors.New("the SDK makes no request of its own type")
	}
	if err := protocol.SerializeRequest(context.Background(), operation, out, r); err != nil {
		return nil, err
	}
	return io.ReadAll(r.GetStream())
}

func writeError(w http.ResponseWriter, err error) {
	var api *apiError
	if !errors.As(err, &api) {
		api = &apiError{http.StatusInternalServerError, "InternalFailure", err.Error()}
	}
	body, err := json.Marshal(map[string]string{"__type": api.code, "message": api.message})
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", jsonType)
	w.Header().Set("X-Amzn-Requestid", requestID())
	w.WriteHeader(api.status)
	_, _ = w.Write(body)
}

func requestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
